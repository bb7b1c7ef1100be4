"""The proxy between the agents and the model APIs: it holds the keys, keeps the limits and counts the cost. A process of its own."""
