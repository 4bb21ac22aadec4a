"""Who to ask, in what order, how often: policies, breakers, retry budget. All pure, `now` comes in."""
