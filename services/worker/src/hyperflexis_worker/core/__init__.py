"""Pure: messages, plans and times in, decisions out. No clock, socket, asyncio or torch."""
