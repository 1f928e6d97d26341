"""Pictures of finished runs: matplotlib is imported here alone; landscape/ and comparing/ measure what is drawn."""
