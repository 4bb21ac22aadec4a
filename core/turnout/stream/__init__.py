"""Moving the answer: what is read of a stream on its way, and the loop that moves it."""
