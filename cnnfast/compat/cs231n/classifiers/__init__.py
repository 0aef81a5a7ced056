"""The course's ``classifiers``, of which the convolutional one is here."""
