"""A stand-in for Google Cloud Storage on this machine: PORT, in memory, with the bucket "bucket".

It runs `gcp-storage-emulator`, which leaves out the header that tells an object's generation, and
which tensorstore asks for.
"""

import sys
import threading

from gcp_storage_emulator import server, storage


def serve(port):
    """Serve for ever."""
    last = {}
    get_file_obj, close = storage.Storage.get_file_obj, server.Response.close

    def remembered(self, *names):
        found = get_file_obj(self, *names)
        last["generation"] = found.get("generation")
        return found

    def with_generation(self):
        generation = last.pop("generation", None)
        if generation is not None:
            self["x-goog-generation"] = generation
        close(self)

    storage.Storage.get_file_obj = remembered
    server.Response.close = with_generation  # requests are answered one after the other
    server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket").start()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
