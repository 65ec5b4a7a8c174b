"""What the tests stand on: certificates minted at run time, and a real deployment on loopback."""
