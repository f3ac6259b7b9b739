"""Files that say that Segue made them."""
