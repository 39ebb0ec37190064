"""multi-agent-bridge: a durable message bus for programs and AI agents.

The engine of the server. It knows no extension; see ARCHITECTURE.md for the life of a message.
"""

__version__ = "1.3.0"
