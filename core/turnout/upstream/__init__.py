"""One attempt against one provider: the connection, the request's head, what the answer's status means."""
