"""What a request used and what it cost, each attempt by itself, in integers."""
