"""One module for each way of computing. What they share is in `base`; who chooses is `dispatch`."""
