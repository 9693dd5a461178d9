#include "team.h"

namespace dynadapt::counting {

Rates rates;
std::map<std::string, Total> totals;

std::string kernel_of(const std::string& text) {
  const size_t arguments = text.find('(', text.find("Body = "));
  size_t begin = arguments, depth = 0;
  while (begin > 0 && (depth || (text[begin - 1] != ':' && text[begin - 1] != ' '))) {
    begin--;
    depth += text[begin] == '>';
    depth -= text[begin] == '<';
  }
  const std::string name = text.substr(begin, text.find_first_of("<(", begin) - begin);
  std::string of = text.substr(arguments + 1, text.find_first_of("&,)", arguments) - arguments - 1);
  of = of.substr(of.rfind(':') == std::string::npos ? 0 : of.rfind(':') + 1);
  return name + "(" + of + ")";
}

}  // namespace dynadapt::counting
