//! What programs say to one another: the HTTP API and the control socket.
