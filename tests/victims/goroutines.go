// Goroutines that compute, sleep, and wait on channels, pipes and system calls; the runtime preempts them by signals
// and their stacks are a few KiB. Every goroutine checks its own work; a wrong sum or an error counts as bad.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

var rounds, bad int64

func probe() int {
	_, _, e := syscall.RawSyscall(syscall.SYS_GETPPID, 0, 0, 0)
	return int(e)
}

func sum(depth int) int {
	var frame [16]int
	for i := range frame {
		frame[i] = depth * i
	}
	if depth == 0 {
		return 0
	}
	return sum(depth-1) + frame[1] - depth + 1
}

func compute() {
	for {
		if sum(200) != 200 {
			atomic.AddInt64(&bad, 1)
		}
		atomic.AddInt64(&rounds, 1)
	}
}

func sleep() {
	for {
		start := time.Now()
		time.Sleep(5 * time.Millisecond)
		if time.Since(start) < 5*time.Millisecond {
			atomic.AddInt64(&bad, 1)
		}
		atomic.AddInt64(&rounds, 1)
	}
}

func pingPong(out chan<- int, in <-chan int) {
	for n := 0; ; n++ {
		out <- n
		if <-in != n {
			atomic.AddInt64(&bad, 1)
		}
		time.Sleep(time.Millisecond)
	}
}

func echo(in <-chan int, out chan<- int) {
	for n := range in {
		out <- n
	}
}

// A raw read: it blocks a whole thread in the kernel.
func blocked() {
	var fds [2]int
	if syscall.Pipe(fds[:]) != nil {
		panic("pipe")
	}
	go func() {
		for {
			time.Sleep(10 * time.Millisecond)
			syscall.Write(fds[1], []byte{7})
		}
	}()
	buffer := make([]byte, 1)
	for {
		n, err := syscall.Read(fds[0], buffer)
		if n != 1 || err != nil || buffer[0] != 7 {
			atomic.AddInt64(&bad, 1)
		}
		atomic.AddInt64(&rounds, 1)
	}
}

func main() {
	for i := 0; i < 3; i++ {
		go compute()
	}
	for i := 0; i < 50; i++ {
		go sleep()
	}
	for i := 0; i < 10; i++ {
		go blocked()
		there, back := make(chan int), make(chan int)
		go pingPong(there, back)
		go echo(there, back)
	}
	time.Sleep(50 * time.Millisecond)
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		before := atomic.LoadInt64(&rounds)
		for atomic.LoadInt64(&rounds) < before+100 {
			time.Sleep(time.Millisecond)
		}
		runtime.GC()
		fmt.Printf("rounds=%d bad=%d probe=%d\n", atomic.LoadInt64(&rounds), atomic.LoadInt64(&bad), probe())
	}
}
