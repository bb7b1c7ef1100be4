"""Events to bytes and back, with version numbers and upcasters."""
