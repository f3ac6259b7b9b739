"""Mark files as made by Segue."""
