"""The published models: their results, the tables and the plot made of them."""
