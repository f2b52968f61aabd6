/* A consumer of SavedModels that has none of our code: C11 and TensorFlow's C library alone.

   It stands for a model server in the tests. One session is shared by a number of workers, each
   of which serves one TCP connection of this machine at a time. Usage:

       consumer SAVED_MODEL WORKERS [allow-xla]

   It loads the meta graph of the tag `serve`, prints "port N", and serves until its standard
   input ends, so that it never outlives the process that started it.

   Numbers are little-endian. A message is u64 length, then that many bytes:

       request   u32 kind; kind 1: u32 n, n × (name, tensor) to feed; u32 n, n × name to fetch
                           kind 2: nothing more; asks for the memory of this process
       answer    u32 TF_Code; not TF_OK: string
                 kind 1: u32 n, n × tensor;  kind 2: i64 resident, i64 highest resident, in bytes
       name      string, "operation:output" as in a SignatureDef
       string    u64 length, bytes
       tensor    u32 TF_DataType, u32 rank, rank × i64, then TF_STRING: a string an element,
                 other types: string of all their bytes

   What fails fails the one request, with its error, and nothing else. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

enum { RUN = 1, MEMORY = 2 };
enum { MAX_RANK = 8, MAX_TENSORS = 32, MAX_NAME = 512 };
static const uint64_t MAX_MESSAGE = (uint64_t)1 << 31;

/* tensorflow::DisableXlaCompilation(). The stock server's main calls it unless it is started with
   --xla_cpu_compilation_enabled (tensorflow_serving/model_servers/main.cc). The C API has no name
   for it, so it is called by the name that C++ compilers of Linux give it. */
extern void _ZN10tensorflow21DisableXlaCompilationEv(void);

static TF_Graph *graph;
static TF_Session *session;
static int listener;

static void *checked(void *memory) {
  if (memory == NULL) {
    fprintf(stderr, "consumer: out of memory\n");
    abort();
  }
  return memory;
}

/* Reading and writing of messages. */

struct reader {
  const char *at, *end;
  int short_of_bytes;
};

static const char *read_bytes(struct reader *reader, uint64_t size) {
  const char *bytes = reader->at;
  if ((uint64_t)(reader->end - reader->at) < size) {
    reader->short_of_bytes = 1;
    return NULL;
  }
  reader->at += size;
  return bytes;
}

static uint32_t read_u32(struct reader *reader) {
  uint32_t value = 0;
  const char *bytes = read_bytes(reader, sizeof value);
  if (bytes != NULL) memcpy(&value, bytes, sizeof value);
  return value;
}

static uint64_t read_u64(struct reader *reader) {
  uint64_t value = 0;
  const char *bytes = read_bytes(reader, sizeof value);
  if (bytes != NULL) memcpy(&value, bytes, sizeof value);
  return value;
}

struct writer {
  char *bytes;
  size_t size, capacity;
};

static void write_bytes(struct writer *writer, const void *bytes, size_t size) {
  if (writer->capacity - writer->size < size) {
    writer->capacity = 2 * writer->capacity + size;
    writer->bytes = checked(realloc(writer->bytes, writer->capacity));
  }
  if (size > 0) memcpy(writer->bytes + writer->size, bytes, size);
  writer->size += size;
}

static void write_u32(struct writer *writer, uint32_t value) {
  write_bytes(writer, &value, sizeof value);
}

static void write_u64(struct writer *writer, uint64_t value) {
  write_bytes(writer, &value, sizeof value);
}

static void write_string(struct writer *writer, const void *bytes, size_t size) {
  write_u64(writer, size);
  write_bytes(writer, bytes, size);
}

/* Tensors. */

static TF_Tensor *read_strings(struct reader *reader, const int64_t *dims, int rank,
                               int64_t count) {
  TF_Tensor *tensor =
      checked(TF_AllocateTensor(TF_STRING, dims, rank, (size_t)count * sizeof(TF_TString)));
  TF_TString *elements = TF_TensorData(tensor);
  for (int64_t i = 0; i < count; i++) TF_StringInit(&elements[i]);
  for (int64_t i = 0; i < count; i++) {
    uint64_t size = read_u64(reader);
    const char *bytes = read_bytes(reader, size);
    if (bytes == NULL) break;
    TF_StringCopy(&elements[i], bytes, size);
  }
  return tensor;
}

static TF_Tensor *read_tensor(struct reader *reader, TF_Status *status) {
  int64_t dims[MAX_RANK], count = 1;
  TF_DataType dtype = (TF_DataType)read_u32(reader);
  uint32_t rank = read_u32(reader);
  if (rank > MAX_RANK) {
    TF_SetStatus(status, TF_INVALID_ARGUMENT, "a tensor of more than 8 dimensions");
    return NULL;
  }
  for (uint32_t i = 0; i < rank; i++) {
    dims[i] = (int64_t)read_u64(reader);
    /* No element takes less than a byte. */
    if (dims[i] < 0 || __builtin_mul_overflow(count, dims[i], &count) ||
        count > reader->end - reader->at) {
      TF_SetStatus(status, TF_INVALID_ARGUMENT, "a shape that the message has no bytes for");
      return NULL;
    }
  }
  if (dtype == TF_STRING) return read_strings(reader, dims, (int)rank, count);
  uint64_t size = read_u64(reader);
  const char *bytes = read_bytes(reader, size);
  size_t element = TF_DataTypeSize(dtype);
  if (bytes == NULL || element == 0 || size % element != 0 || size / element != (uint64_t)count) {
    TF_SetStatus(status, TF_INVALID_ARGUMENT, "a tensor whose bytes do not fit its shape");
    return NULL;
  }
  TF_Tensor *tensor = checked(TF_AllocateTensor(dtype, dims, (int)rank, size));
  if (size > 0) memcpy(TF_TensorData(tensor), bytes, size);
  return tensor;
}

static void write_tensor(struct writer *writer, TF_Tensor *tensor) {
  write_u32(writer, (uint32_t)TF_TensorType(tensor));
  write_u32(writer, (uint32_t)TF_NumDims(tensor));
  for (int i = 0; i < TF_NumDims(tensor); i++) write_u64(writer, (uint64_t)TF_Dim(tensor, i));
  if (TF_TensorType(tensor) != TF_STRING) {
    write_string(writer, TF_TensorData(tensor), TF_TensorByteSize(tensor));
    return;
  }
  TF_TString *elements = TF_TensorData(tensor);
  for (int64_t i = 0; i < TF_TensorElementCount(tensor); i++)
    write_string(writer, TF_StringGetDataPointer(&elements[i]), TF_StringGetSize(&elements[i]));
}

/* Requests. */

static TF_Output read_name(struct reader *reader, TF_Status *status) {
  char name[MAX_NAME + 1], message[MAX_NAME + 64], *end;
  TF_Output output = {NULL, 0};
  uint64_t size = read_u64(reader);
  const char *bytes = size > MAX_NAME ? NULL : read_bytes(reader, size);
  if (bytes == NULL) {
    TF_SetStatus(status, TF_INVALID_ARGUMENT, "a name that is too long or not there");
    return output;
  }
  memcpy(name, bytes, size);
  name[size] = '\0';
  snprintf(message, sizeof message, "the graph has no tensor '%s'", name);
  char *colon = strrchr(name, ':');
  if (colon != NULL) {
    *colon = '\0';
    output.index = (int)strtol(colon + 1, &end, 10);
    output.oper = *end == '\0' ? TF_GraphOperationByName(graph, name) : NULL;
  }
  if (output.oper == NULL || output.index < 0 ||
      output.index >= TF_OperationNumOutputs(output.oper))
    TF_SetStatus(status, TF_NOT_FOUND, message);
  return output;
}

struct call {
  TF_Output inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  TF_Tensor *fed[MAX_TENSORS], *fetched[MAX_TENSORS];
  uint32_t num_inputs, num_outputs;
};

static void read_call(struct reader *reader, struct call *call, TF_Status *status) {
  uint32_t n = read_u32(reader);
  for (uint32_t i = 0; i < n && i < MAX_TENSORS; i++) {
    call->inputs[i] = read_name(reader, status);
    if (TF_GetCode(status) != TF_OK) return;
    call->fed[i] = read_tensor(reader, status);
    if (TF_GetCode(status) != TF_OK) return;
    call->num_inputs++;
  }
  uint32_t m = read_u32(reader);
  for (uint32_t i = 0; i < m && i < MAX_TENSORS; i++) {
    call->outputs[i] = read_name(reader, status);
    if (TF_GetCode(status) != TF_OK) return;
    call->num_outputs++;
  }
  if (n > MAX_TENSORS || m > MAX_TENSORS)
    TF_SetStatus(status, TF_INVALID_ARGUMENT, "more than 32 tensors to feed or to fetch");
  else if (reader->short_of_bytes || reader->at != reader->end)
    TF_SetStatus(status, TF_INVALID_ARGUMENT, "a message of another length than its content");
}

static void run(struct reader *reader, struct writer *answer, TF_Status *status) {
  struct call call;
  memset(&call, 0, sizeof call);
  read_call(reader, &call, status);
  if (TF_GetCode(status) == TF_OK)
    TF_SessionRun(session, NULL, call.inputs, call.fed, (int)call.num_inputs, call.outputs,
                  call.fetched, (int)call.num_outputs, NULL, 0, NULL, status);
  if (TF_GetCode(status) == TF_OK) {
    write_u32(answer, TF_OK);
    write_u32(answer, call.num_outputs);
    for (uint32_t i = 0; i < call.num_outputs; i++) write_tensor(answer, call.fetched[i]);
  }
  for (uint32_t i = 0; i < MAX_TENSORS; i++) {
    /* Frees the strings that were copied into it too. */
    if (call.fed[i] != NULL) TF_DeleteTensor(call.fed[i]);
    if (call.fetched[i] != NULL) TF_DeleteTensor(call.fetched[i]);
  }
}

static void memory(struct writer *answer, TF_Status *status) {
  FILE *file = fopen("/proc/self/status", "r");
  if (file == NULL) {
    TF_SetStatus(status, TF_UNAVAILABLE, "/proc/self/status cannot be read");
    return;
  }
  char line[256];
  long long resident = 0, highest = 0;
  while (fgets(line, sizeof line, file) != NULL) {
    sscanf(line, "VmRSS: %lld kB", &resident);
    sscanf(line, "VmHWM: %lld kB", &highest);
  }
  fclose(file);
  write_u32(answer, TF_OK);
  write_u64(answer, (uint64_t)resident * 1024);
  write_u64(answer, (uint64_t)highest * 1024);
}

static void answer_request(struct reader *reader, struct writer *answer) {
  TF_Status *status = TF_NewStatus();
  uint32_t kind = read_u32(reader);
  if (kind == RUN)
    run(reader, answer, status);
  else if (kind == MEMORY)
    memory(answer, status);
  else
    TF_SetStatus(status, TF_INVALID_ARGUMENT, "a request of an unknown kind");
  if (TF_GetCode(status) != TF_OK) {
    answer->size = 0;
    write_u32(answer, (uint32_t)TF_GetCode(status));
    write_string(answer, TF_Message(status), strlen(TF_Message(status)));
  }
  TF_DeleteStatus(status);
}

/* Connections. */

static int receive(int connection, void *bytes, size_t size) {
  for (char *at = bytes; size > 0;) {
    ssize_t n = recv(connection, at, size, 0);
    if (n <= 0) return 0;
    at += n;
    size -= (size_t)n;
  }
  return 1;
}

static int send_all(int connection, const void *bytes, size_t size) {
  for (const char *at = bytes; size > 0;) {
    ssize_t n = send(connection, at, size, MSG_NOSIGNAL);
    if (n <= 0) return 0;
    at += n;
    size -= (size_t)n;
  }
  return 1;
}

static void serve(int connection) {
  uint64_t size;
  int going_on = 1;
  while (going_on && receive(connection, &size, sizeof size) && size <= MAX_MESSAGE) {
    char *request = checked(malloc(size + 1));
    struct writer answer = {NULL, 0, 0};
    going_on = receive(connection, request, size);
    if (going_on) {
      struct reader reader = {request, request + size, 0};
      answer_request(&reader, &answer);
      size = answer.size;
      going_on = send_all(connection, &size, sizeof size) &&
                 send_all(connection, answer.bytes, answer.size);
    }
    free(request);
    free(answer.bytes);
  }
  close(connection);
}

static void *work(void *nothing) {
  for (;;) {
    int connection = accept(listener, NULL, NULL);
    if (connection >= 0) serve(connection);
  }
  return nothing;
}

static int listen_locally(void) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof address;
  listener = socket(AF_INET, SOCK_STREAM, 0);
  if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) != 0 ||
      listen(listener, 64) != 0 || getsockname(listener, (struct sockaddr *)&address, &size) != 0) {
    perror("consumer");
    exit(1);
  }
  return ntohs(address.sin_port);
}

static void load(const char *folder) {
  const char *tags[] = {"serve"};
  TF_Status *status = TF_NewStatus();
  TF_SessionOptions *options = TF_NewSessionOptions();
  graph = TF_NewGraph();
  session = TF_LoadSessionFromSavedModel(options, NULL, folder, tags, 1, graph, NULL, status);
  if (TF_GetCode(status) != TF_OK) {
    fprintf(stderr, "consumer: %s cannot be loaded: %s\n", folder, TF_Message(status));
    exit(1);
  }
  TF_DeleteSessionOptions(options);
  TF_DeleteStatus(status);
}

int main(int argc, char **argv) {
  int workers = argc > 2 ? atoi(argv[2]) : 0;
  int allow_xla = argc == 4 && strcmp(argv[3], "allow-xla") == 0;
  if (workers < 1 || argc > 4 || (argc == 4 && !allow_xla)) {
    fprintf(stderr, "usage: consumer SAVED_MODEL WORKERS [allow-xla]\n");
    return 2;
  }
  /* What is as large as a whole file goes back to the system when it is freed, and does not stay
     in the heap of the worker that happened to serve it: memory that grows is then a leak. */
  mallopt(M_MMAP_THRESHOLD, 4 << 20);
  if (!allow_xla) _ZN10tensorflow21DisableXlaCompilationEv();
  load(argv[1]);
  int port = listen_locally();
  for (int i = 0; i < workers; i++) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, NULL) != 0) {
      fprintf(stderr, "consumer: no more threads than %d\n", i);
      return 1;
    }
  }
  printf("port %d\nTensorFlow %s\n", port, TF_Version());
  fflush(stdout);
  while (getchar() != EOF) continue;
  /* Workers may be inside the session: nothing is torn down under them. */
  _exit(0);
}
