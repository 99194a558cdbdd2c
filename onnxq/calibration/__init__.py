"""From batches of data to the range of every tensor."""
