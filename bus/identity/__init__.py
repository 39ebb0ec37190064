"""Who is calling, and what they may do: callers and grants, the one policy, and the keys that the bus gives out."""
