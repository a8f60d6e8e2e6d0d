"""Who may call: certificates, keys, tokens, and the policy that says what each may do."""
