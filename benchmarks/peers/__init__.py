"""The other frameworks that Segue is measured against."""
