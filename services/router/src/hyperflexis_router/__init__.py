"""The router: the front door of a HyperFlexis cell. Any replica serves any request."""
