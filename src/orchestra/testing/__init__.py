"""Shipped doubles and kits: what people who write an adapter or test a plan need. Production never imports this package."""
