// Command workload is what runs in the lab's pods.
//
//	workload echo    HTTP on :8080, answers with the cluster's name; a byte server for measurements on :9000
//	workload pause   holds a pod's namespaces open
//	workload get U   prints what the URL answers; fails after two seconds
//
// The byte server reads requests of nine bytes, a letter and a big-endian 64-bit count, one after another:
// 'D' sends that many bytes down, 'U' takes that many up and answers "k", anything else comes back as it is.
package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "pause":
		pause()
	case len(os.Args) == 2 && os.Args[1] == "echo":
		echo()
	case len(os.Args) == 3 && os.Args[1] == "get":
		if err := get(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		fmt.Fprintln(os.Stderr, "usage: workload echo|pause|get URL")
		os.Exit(2)
	}
}

func get(url string) error {
	client := http.Client{Timeout: 2 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, answer.Status)
	}
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

// pause waits for the end and, as the pod's first process, buries the others' dead.
func pause() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

func echo() {
	cluster, pod := os.Getenv("CLUSTER"), os.Getenv("POD")
	listener, err := net.Listen("tcp", ":9000")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				log.Fatal(err)
			}
			go serveBytes(conn)
		}
	}()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		os.Exit(0)
	}()
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, "cluster=%s\npod=%s\nfrom=%s\n", cluster, pod, r.RemoteAddr)
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}

func serveBytes(conn net.Conn) {
	defer conn.Close()
	var head [9]byte
	down := make([]byte, 1<<16)
	for {
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		count := int64(binary.BigEndian.Uint64(head[1:]))
		switch head[0] {
		case 'D':
			for left := count; left > 0; {
				n := min(left, int64(len(down)))
				if _, err := conn.Write(down[:n]); err != nil {
					return
				}
				left -= n
			}
		case 'U':
			if _, err := io.CopyN(io.Discard, conn, count); err != nil {
				return
			}
			if _, err := conn.Write([]byte("k")); err != nil {
				return
			}
		default:
			if _, err := conn.Write(head[:]); err != nil {
				return
			}
		}
	}
}
