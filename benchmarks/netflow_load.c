// SPDX-License-Identifier: Apache-2.0
/*
 * Traffic over loopback, as fast as it goes: `stream SECONDS` moves bytes over one connection by calls of 16 KiB,
 * `short SECONDS` makes connections that exchange 100 bytes for 200 and end. Prints how many units in how many seconds.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char buffer[16384];

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void require(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static void take(int fd, size_t size)
{
	while (size) {
		ssize_t got = recv(fd, buffer, size, 0);

		require(got > 0, "recv");
		size -= got;
	}
}

static void serve(int listener, int streams)
{
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		require(fd >= 0, "accept");
		if (streams) {
			while (recv(fd, buffer, sizeof(buffer), 0) > 0)
				;
		} else {
			take(fd, 100);
			require(send(fd, buffer, 200, 0) == 200, "send");
		}
		close(fd);
	}
}

int main(int count, char **words)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t size = sizeof(address);
	struct linger reset = {.l_onoff = 1};
	double begun, seconds, units = 0;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	int streams, fd;
	pid_t server;

	require(count == 3, "stream|short SECONDS");
	streams = !strcmp(words[1], "stream");
	seconds = atof(words[2]);
	address.sin_addr.s_addr = htonl(0x7f000002);
	require(!bind(listener, (struct sockaddr *)&address, sizeof(address)), "bind");
	require(!listen(listener, 512), "listen");
	require(!getsockname(listener, (struct sockaddr *)&address, &size), "getsockname");
	server = fork();
	if (!server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(listener, streams);
	}
	begun = now();
	if (streams) {
		fd = socket(AF_INET, SOCK_STREAM, 0);
		require(!connect(fd, (struct sockaddr *)&address, sizeof(address)), "connect");
		while (now() - begun < seconds) {
			ssize_t sent = send(fd, buffer, sizeof(buffer), 0);

			require(sent > 0, "send");
			units += sent;
		}
	} else {
		while (now() - begun < seconds) {
			fd = socket(AF_INET, SOCK_STREAM, 0);
			require(!connect(fd, (struct sockaddr *)&address, sizeof(address)), "connect");
			require(send(fd, buffer, 100, 0) == 100, "send");
			take(fd, 200);
			/* With a reset: ports in TIME_WAIT would run out. */
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
			close(fd);
			units += 1;
		}
	}
	seconds = now() - begun;
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
	printf("%.0f %.6f\n", units, seconds);
	return 0;
}
