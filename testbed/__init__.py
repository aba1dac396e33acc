"""The test bed: real parts (a Kafka broker, …) started as ordinary local processes, for the tests and for people."""
