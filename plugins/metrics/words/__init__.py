"""Words that speech recognisers hear."""
