// A small web app in Go, with the standard library alone.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"runtime"
	"time"
)

func main() {
	started := time.Now()
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{
			"hello":  "go",
			"go":     runtime.Version(),
			"uptime": time.Since(started).Round(time.Millisecond).String(),
		})
	})
	address := ":" + os.Getenv("PORT")
	log.Println("listening on", address)
	log.Fatal(http.ListenAndServe(address, nil))
}
