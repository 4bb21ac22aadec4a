"""The front door: who is asking, and may they."""
