"""What requests to model APIs use, cost and may use: buckets, queues, prices and budgets as pure code. Time and chance are handed in."""
