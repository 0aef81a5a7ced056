"""The courses' own names and argument orders: one module for each course."""
