"""The broker: it routes messages between bridges, handlers and other servers, and understands none of them."""
