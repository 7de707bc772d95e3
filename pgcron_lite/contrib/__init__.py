"""Integrations with other projects, one module each. They use the same doors as strangers; nothing imports them."""
