"""Calls CRI through gRPC's C core and prints each reply on one line: messages are not decoded, but passed as bytes."""

import sys

import grpc

SERVICE = "/runtime.v1.RuntimeService/"


def call(channel, name, request=b""):
    return channel.unary_unary(SERVICE + name)(request, timeout=20)


def main(socket):
    for target in f"unix://{socket}", f"unix:{socket}":
        with grpc.insecure_channel(target) as channel:
            # The later calls of a connection refer to header fields of the first ones.
            for _ in range(3):
                for name in "Version", "ListPodSandbox":
                    print(name, call(channel, name))
            # Several calls at a time.
            list_pods = channel.unary_unary(SERVICE + "ListPodSandbox")
            for reply in [list_pods.future(b"", timeout=20) for _ in range(50)]:
                print("ListPodSandbox", reply.result())
            # A field 1 with the id of no pod.
            try:
                call(channel, "PodSandboxStatus", b"\x0a\x06absent")
            except grpc.RpcError as error:
                print("PodSandboxStatus", error.code().name, error.details())


main(sys.argv[1])
