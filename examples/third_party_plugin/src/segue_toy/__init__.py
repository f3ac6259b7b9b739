"""Three small components for Segue. Imports nothing: Segue imports what a config asks for."""
