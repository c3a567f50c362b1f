"""The simulator: scenarios are lowered to operators, costed, scheduled and added up in a ledger."""
