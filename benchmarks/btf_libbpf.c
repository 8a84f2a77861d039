// SPDX-License-Identifier: Apache-2.0
/* Where members lie, from BTF through libbpf: btf_libbpf FILE struct.member...; built and run by benchmarks/btf.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <bpf/btf.h>

static long find(const struct btf *btf, __u32 id, const char *path, __u32 bits)
{
	size_t length = strcspn(path, ".["), step = strcspn(path, ".");
	const struct btf_type *t = btf__type_by_id(btf, id);

	while (btf_is_mod(t) || btf_is_typedef(t))
		t = btf__type_by_id(btf, t->type);
	for (int i = 0; btf_is_composite(t) && i < btf_vlen(t); i++) {
		const struct btf_member *m = btf_members(t) + i;
		const char *name = btf__name_by_offset(btf, m->name_off);
		__u32 type = m->type, at = bits + btf_member_bit_offset(t, i);
		int hit = strlen(name) == length && !strncmp(name, path, length);
		long found = -1;

		if (hit && path[length] == '[') {
			type = btf_array(btf__type_by_id(btf, type))->type;
			at += 8 * btf__resolve_size(btf, type) * atoi(path + length + 1);
		}
		if (hit && !path[step])
			return at / 8;
		if (hit || !*name)
			found = find(btf, type, hit ? path + step + 1 : path, at);
		if (found >= 0)
			return found;
	}
	return -1;
}

int main(int argc, char **argv)
{
	struct btf *btf = argc > 1 ? btf__parse(argv[1], NULL) : NULL;

	if (!btf)
		return 1;
	for (int i = 2; i < argc; i++) {
		char *path = strchr(argv[i], '.');
		int id;

		*path++ = 0;
		id = btf__find_by_name_kind(btf, argv[i], BTF_KIND_STRUCT);
		printf("%s.%s %ld\n", argv[i], path, id < 0 ? -1 : find(btf, id, path, 0));
	}
	return 0;
}
