"""The operator's side over HTTP: health, metrics, an API and a page, all of them showing the broker's status."""
