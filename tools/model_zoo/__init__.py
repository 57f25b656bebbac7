"""Published models: results, tables and plot."""
