"""Charts and tables as HTML that needs nothing but a browser: no network, no script."""
