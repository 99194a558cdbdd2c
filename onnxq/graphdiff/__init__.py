"""What is different between two graphs, whoever made them."""
