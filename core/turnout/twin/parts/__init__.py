"""What the bigger twins are made of: nothing in here is offered by itself."""
