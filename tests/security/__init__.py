"""Who may call, how much, and what an attacker gets."""
