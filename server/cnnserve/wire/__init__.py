"""Message classes made from proto/ by `make proto`. Never edited by hand; `make check` compares them."""
