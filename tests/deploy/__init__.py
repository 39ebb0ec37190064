"""The files that an operator starts: well-formed, of one mind, and working as far as that can be tried here."""
