"""What a phone recogniser hears."""
