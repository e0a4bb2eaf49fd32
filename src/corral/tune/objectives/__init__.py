"""What training makes smaller: one class for each loss, none for each trainer."""
