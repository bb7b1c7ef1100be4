"""What an application is tested with."""

from webapp_framework.testing.client import Client

__all__ = ["Client"]
