// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Loads minimal_btf.bpf.c with libbpf: minimal_btf OBJECT BTF PORT. Attached, it says "ready"; when standard input
 * ends it prints what the program saw, a number a line.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#define VALUES 19

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	LIBBPF_OPTS(bpf_object_open_opts, opts);
	uint32_t zero = 0, port;
	uint64_t values[VALUES] = {};
	struct bpf_object *object;
	struct bpf_program *program;
	struct bpf_link *link;

	if (argc != 4)
		return 2;
	opts.btf_custom_path = argv[2];
	port = atoi(argv[3]);
	object = bpf_object__open_file(argv[1], &opts);
	if (!object)
		return fail("open");
	if (bpf_object__load(object))
		return fail("load");
	if (bpf_map_update_elem(bpf_object__find_map_fd_by_name(object, "wanted"), &zero, &port, BPF_ANY))
		return fail("wanted");
	program = bpf_object__find_program_by_name(object, "set_state");
	link = bpf_program__attach(program);
	if (!link)
		return fail("attach");
	puts("ready");
	fflush(stdout);
	while (getchar() != EOF)
		;
	if (bpf_map_lookup_elem(bpf_object__find_map_fd_by_name(object, "seen"), &zero, values))
		return fail("seen");
	for (int i = 0; i < VALUES; i++)
		printf("%llu\n", (unsigned long long)values[i]);
	bpf_link__destroy(link);
	bpf_object__close(object);
	return 0;
}
