// Connect to 127.0.0.1 by known functions: dial PORT TIMES. Then wait for the end of the standard input.
package main

import (
	"io"
	"net"
	"os"
	"strconv"
)

//go:noinline
func dial(port string) int {
	connection, err := net.Dial("tcp4", "127.0.0.1:"+port)
	if err != nil {
		return 1
	}
	connection.Close()
	return 2
}

//go:noinline
func outer(port string) int {
	return dial(port) + 1
}

func main() {
	times, _ := strconv.Atoi(os.Args[2])
	sum := 0
	for i := 0; i < times; i++ {
		sum += outer(os.Args[1])
	}
	io.ReadAll(os.Stdin)
	if sum == 12345 {
		os.Exit(1)
	}
}
