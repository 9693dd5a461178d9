/* A profiler in miniature: NVTX loads it where NVTX_INJECTION64_PATH names it, and it writes a line for each domain and range to
 * the file that NVTX_RECORD names. */
#include <nvtx3/nvToolsExt.h>
#include <stdio.h>
#include <stdlib.h>

static FILE* record;
static const char* domains[16];
static size_t domain_count;

static nvtxDomainHandle_t domain_create(const char* name) {
  domains[domain_count] = name;
  return (nvtxDomainHandle_t)(++domain_count);
}

static int push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event) {
  const char* text = event->messageType == NVTX_MESSAGE_TYPE_ASCII        ? event->message.ascii
                     : event->messageType == NVTX_MESSAGE_TYPE_REGISTERED ? (const char*)event->message.registered
                                                                          : "?";
  fprintf(record, "push %s@%s\n", domain ? domains[(size_t)domain - 1] : "default", text);
  return 0;
}

static int pop(nvtxDomainHandle_t domain) {
  fprintf(record, "pop %s\n", domain ? domains[(size_t)domain - 1] : "default");
  return 0;
}

static nvtxStringHandle_t register_string(nvtxDomainHandle_t domain, const char* text) {
  char* copy = malloc(256);
  (void)domain;
  snprintf(copy, 256, "%s", text);
  return (nvtxStringHandle_t)copy;
}

int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table) {
  const NvtxExportTableCallbacks* callbacks = get_table(NVTX_ETID_CALLBACKS);
  NvtxFunctionTable core2 = NULL;
  unsigned size = 0;
  if (!callbacks || !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &core2, &size)) return 0;
  if (!record) {
    record = fopen(getenv("NVTX_RECORD"), "w");
    setvbuf(record, NULL, _IOLBF, 0);
  }
  *core2[NVTX_CBID_CORE2_DomainCreateA] = (NvtxFunctionPointer)domain_create;
  *core2[NVTX_CBID_CORE2_DomainRangePushEx] = (NvtxFunctionPointer)push;
  *core2[NVTX_CBID_CORE2_DomainRangePop] = (NvtxFunctionPointer)pop;
  *core2[NVTX_CBID_CORE2_DomainRegisterStringA] = (NvtxFunctionPointer)register_string;
  return 1;
}
